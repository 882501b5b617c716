/**
 * Resizing as onnxcam/preprocess.py has it: Pillow's with antialiasing, OpenCV's without.
 *
 * A browser's canvas is no substitute: what its interpolation is differs from one to the next, and a model
 * sees the difference.
 *
 * @typedef {{width: number, height: number, data: Uint8Array}} Photo `data` is RGB, row by row.
 * @typedef {{samples: Int32Array, weights: Float64Array}} Mix what one pixel is made of; a sample may occur twice.
 * @typedef {{start: number, stop: number}} Span
 */

/**
 * @param {Photo} photo
 * @param {[number, number]} size height and width of the result
 * @param {string} interpolation nearest, linear, cubic, lanczos or area
 * @param {boolean} antialias whether the kernel widens as the photo shrinks
 * @param {Span} rows, columns the part of the result that is wanted; the others are not computed
 * @returns {Photo}
 */
export function resize(photo, [height, width], interpolation, antialias, rows, columns) {
  if (interpolation === "nearest") {
    return mixed(photo, nearest(photo.height, height), nearest(photo.width, width), rows, columns, bytes);
  }
  if (antialias || (photo.height === height && photo.width === width)) {
    const [ys, xs] = [pillow(photo.height, height, interpolation), pillow(photo.width, width, interpolation)];
    return mixed(photo, ys, xs, rows, columns, bytes);
  }
  let kernel = interpolation;
  if (kernel === "area") kernel = photo.height >= height && photo.width >= width ? "area" : "linearArea";
  const [ys, xs] = [openCV(photo.height, height, kernel), openCV(photo.width, width, kernel)];
  return mixed(photo, ys, xs, rows, columns, { area: exact, cubic: exact, lanczos: fixed }[kernel] ?? coarse);
}

/**
 * How sums of weighted pixels become numbers again: after the pass along x, and after that along y.
 * `Between` is the array that holds them in the meantime; `scaled` are the weights as they are used.
 */
const nearestByte = (s) => Math.floor(s + 0.5);
const bytes = { Between: Uint8ClampedArray, scaled: (w) => w, x: nearestByte, y: nearestByte };
const exact = { Between: Float64Array, scaled: (w) => w, x: (s) => s, y: roundEven };
// OpenCV's fixed point: weights are multiples of 2^-11. Its linear kernel drops bits on the way.
const elevenBits = (w) => w.map((v) => roundEven(Math.fround(v) * 2048));
const shifted = (s) => Math.floor((s + 2 ** 21) / 2 ** 22);
const fixed = { Between: Float64Array, scaled: elevenBits, x: (s) => s, y: shifted };
const coarse = {
  Between: Float64Array,
  scaled: elevenBits,
  x: (s) => Math.floor(s / 16),
  term: (product) => Math.floor(product / 65536),
  y: (s) => Math.floor((s + 2) / 4),
};

/** Both passes, first along x. */
function mixed(photo, ys, xs, rows, columns, arithmetic) {
  const { Between, scaled, term = (product) => product } = arithmetic;
  const [height, width] = [rows.stop - rows.start, columns.stop - columns.start];
  const stride = photo.width * 3;
  const wanted = ys.slice(rows.start, rows.stop);
  const first = wanted.reduce((low, { samples }) => Math.min(low, samples[0]), Infinity);
  const last = wanted.reduce((high, { samples }) => Math.max(high, samples.at(-1) + 1), 0);
  const between = new Between((last - first) * width * 3);
  for (let x = 0; x < width; x++) {
    const { samples, weights } = xs[columns.start + x];
    const used = scaled(weights);
    for (let y = first; y < last; y++) {
      const from = y * stride;
      const to = ((y - first) * width + x) * 3;
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < used.length; k++) sum += used[k] * photo.data[from + 3 * samples[k] + c];
        between[to + c] = arithmetic.x(sum);
      }
    }
  }
  const data = new Uint8ClampedArray(height * width * 3);
  const row = width * 3;
  for (let y = 0; y < height; y++) {
    const { samples, weights } = wanted[y];
    const used = scaled(weights);
    for (let x = 0; x < row; x++) {
      let sum = 0;
      for (let k = 0; k < used.length; k++) sum += term(used[k] * between[(samples[k] - first) * row + x]);
      data[y * row + x] = arithmetic.y(sum);
    }
  }
  return { width, height, data };
}

/** Half to even, as Python and NumPy round. */
export function roundEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** @returns {Mix[]} the sample of n under the centre of each of `size`. */
function nearest(n, size) {
  // A running sum, as Pillow has it: where a centre falls between two samples, its rounding decides.
  const step = n / size;
  const mixes = [];
  for (let i = 0, at = 0.5 * step; i < size; i++, at += step) {
    mixes.push(mix(Math.floor(at), [1]));
  }
  return mixes;
}

const PILLOW = {
  area: { support: 0.5, kernel: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  linear: { support: 1, kernel: (x) => Math.max(0, 1 - Math.abs(x)) },
  cubic: { support: 2, kernel: (x) => keys(Math.abs(x), -0.5) },
  lanczos: { support: 3, kernel: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/** @returns {Mix[]} Pillow's weights: multiples of 2^-22, its fixed point, so that sums of them are exact. */
function pillow(n, size, interpolation) {
  if (n === size) return Array.from({ length: n }, (_, i) => mix(i, [1]));
  const { support, kernel } = PILLOW[interpolation];
  const step = n / size;
  const wide = Math.max(step, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * step;
    const low = Math.max(Math.trunc(centre - support * wide + 0.5), 0);
    const high = Math.min(Math.trunc(centre + support * wide + 0.5), n);
    const taps = Array.from({ length: high - low }, (_, k) => kernel((low + k - centre + 0.5) / wide));
    return mix(low, normalized(taps).map((w) => Math.trunc(w * 2 ** 22 + (w < 0 ? -0.5 : 0.5)) / 2 ** 22));
  });
}

/** @returns {Mix[]} OpenCV's weights; samples beyond an edge are the edge's. */
function openCV(n, size, kernel) {
  const step = n / size;
  return Array.from({ length: size }, (_, i) => {
    if (kernel === "area") return covered(i * step, Math.min((i + 1) * step, n));
    let at = Math.fround((i + 0.5) * step - 0.5);
    if (kernel === "linearArea") {
      const cell = Math.floor(i * step);
      const share = Math.fround(i + 1 - (cell + 1) / step);
      at = cell + (share <= 0 ? 0 : share - Math.floor(share));
    }
    const cell = Math.floor(at);
    const x = Math.fround(at - cell);
    if (kernel === "cubic") return mix(cell - 1, [1 + x, x, 1 - x, 2 - x].map((d) => keys(d, -0.75)), n);
    if (kernel === "lanczos") {
      const taps = Array.from({ length: 8 }, (_, k) => sinc(x + 3 - k) * sinc((x + 3 - k) / 4));
      return mix(cell - 3, normalized(taps), n);
    }
    return mix(cell, [1 - x, x], n);
  });
}

/** @returns {Mix} of weights for the samples from `low` on; those outside of the n there are become the edges'. */
function mix(low, weights, n = Infinity) {
  const samples = Int32Array.from(weights, (_, k) => Math.min(Math.max(low + k, 0), n - 1));
  return { samples, weights: Float64Array.from(weights) };
}

function normalized(taps) {
  const sum = taps.reduce((a, b) => a + b, 0);
  return taps.map((tap) => tap / sum);
}

/** @returns {Mix} the mean over [from, to): each sample by how much of it lies inside. */
function covered(from, to) {
  const low = Math.floor(from);
  const length = Math.max(Math.ceil(to - 1e-9) - low, 1);
  const share = (_, k) => (Math.min(low + k + 1, to) - Math.max(low + k, from)) / (to - from);
  return mix(low, Array.from({ length }, share));
}

/** Keys' cubic kernel at |x|. */
function keys(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}
