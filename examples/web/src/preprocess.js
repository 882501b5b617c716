/**
 * From a photo to the model's input, and from the model's grid back onto the photo; equal to
 * onnxcam/preprocess.py.
 *
 * @typedef {{photo: [number, number], size: [number, number], scale: [number, number], offset: [number, number]}}
 *   Geometry `input = photo * scale + offset`, per axis (y, x), of pixel edges; sizes are (height, width).
 */

import { resize, roundEven } from "./resize.js";

/**
 * The model's input for one photo, and where the photo lies in it.
 *
 * @param {import("./resize.js").Photo} photo
 * @param {object} how the record's `preprocess`
 * @returns {{values: Float32Array, dims: number[], geometry: Geometry}} of a batch of one
 */
export function apply(photo, how) {
  const { pixels, geometry } = place(photo, how);
  const channels = { RGB: [0, 1, 2], BGR: [2, 1, 0], L: [0] }[how.channels];
  if (how.channels === "L") toGrey(pixels.data);
  const [height, width] = how.size;
  const cells = height * width;
  const values = new Float32Array(channels.length * cells);
  const [cellStride, channelStride] = how.layout === "NCHW" ? [1, cells] : [channels.length, 1];
  channels.forEach((channel, c) => {
    // One multiplication and one addition; the factors are rounded once, from float64.
    const [mean, std] = [how.mean[c % how.mean.length], how.std[c % how.std.length]];
    const [factor, shift] = [Math.fround(how.scale / std), Math.fround(mean / std)];
    for (let i = 0; i < cells; i++) {
      values[i * cellStride + c * channelStride] = Math.fround(pixels.data[3 * i + channel] * factor) - shift;
    }
  });
  const dims = how.layout === "NCHW" ? [1, channels.length, height, width] : [1, height, width, channels.length];
  return { values, dims, geometry };
}

/**
 * A map over the model's whole input, interpolated at every pixel of the photo: bilinear, with half-pixel
 * centres and clamped edges.
 *
 * @param {{data: ArrayLike<number>, height: number, width: number}} grid at any resolution
 * @param {Geometry} geometry
 * @returns {Float32Array} of the photo's size, row by row; NaN where the model never saw the photo
 */
export function toPhoto(grid, geometry) {
  const [height, width] = geometry.photo;
  const out = new Float32Array(height * width).fill(NaN);
  const [rows, columns] = [lerp(grid.height, geometry, 0), lerp(grid.width, geometry, 1)];
  const [ys, xs] = [span(geometry, 0), span(geometry, 1)];
  for (let y = ys.start; y < ys.stop; y++) {
    const [above, below] = [rows[y].low * grid.width, rows[y].high * grid.width];
    for (let x = xs.start; x < xs.stop; x++) {
      const { low, high, share } = columns[x];
      const top = grid.data[above + low] * (1 - share) + grid.data[above + high] * share;
      const bottom = grid.data[below + low] * (1 - share) + grid.data[below + high] * share;
      out[y * width + x] = top * (1 - rows[y].share) + bottom * rows[y].share;
    }
  }
  return out;
}

/** The same place of a photo that is shown at another size (height, width). */
export function shownAt(geometry, size) {
  const scale = geometry.scale.map((s, axis) => (s * geometry.photo[axis]) / size[axis]);
  return { ...geometry, photo: size, scale };
}

/** The pixels along one axis whose centres lie in the model's input; at least one. */
function span(geometry, axis) {
  const n = geometry.photo[axis];
  const pixelAt = (edge) => Math.ceil((edge - geometry.offset[axis]) / geometry.scale[axis] - 0.5);
  const start = Math.min(Math.max(pixelAt(0), 0), n);
  const stop = Math.min(Math.max(pixelAt(geometry.size[axis]), 0), n);
  if (start < stop) return { start, stop };
  const only = Math.min(start, n - 1); // the input is a part of one pixel, between two centres
  return { start: only, stop: only + 1 };
}

/** Per pixel along one axis, the two cells around it and the second one's share. */
function lerp(cells, geometry, axis) {
  return Array.from({ length: geometry.photo[axis] }, (_, pixel) => {
    const centre = (pixel + 0.5) * geometry.scale[axis] + geometry.offset[axis];
    const at = Math.min(Math.max((centre * cells) / geometry.size[axis] - 0.5, 0), cells - 1);
    const low = Math.min(Math.floor(at), Math.max(cells - 2, 0));
    return { low, high: Math.min(low + 1, cells - 1), share: at - low };
  });
}

/** The photo resized and cut or padded to the input's size. */
function place(photo, how) {
  const from = [photo.height, photo.width];
  const resized = resizedSize(from, how);
  const offset = how.size.map((n, axis) => {
    const r = resized[axis];
    if (how.fit === "letterbox" && how.anchor === "top-left") return 0;
    // torchvision's CenterCrop: half to even; a photo that is too small gets bars.
    return how.fit !== "letterbox" && r >= n ? -roundEven((r - n) / 2) : Math.floor((n - r) / 2);
  });
  const scale = resized.map((n, axis) => n / from[axis]);
  const geometry = { photo: from, size: how.size, scale, offset };
  const [rows, columns] = offset.map((o, axis) => ({
    start: Math.max(-o, 0),
    stop: Math.min(how.size[axis] - o, resized[axis]),
  }));
  const part = resize(photo, resized, how.interpolation, how.antialias, rows, columns);
  const [top, left] = offset.map((o) => Math.max(o, 0));
  return { pixels: padded(part, how.size, top, left, how.fit === "letterbox" ? how.pad_value : 0), geometry };
}

function resizedSize([h, w], how) {
  const [height, width] = how.size;
  if (how.fit === "stretch") return how.size;
  if (how.fit === "letterbox") {
    const ratio = Math.min(height / h, width / w);
    return [Math.max(roundEven(h * ratio), 1), Math.max(roundEven(w * ratio), 1)];
  }
  if (Array.isArray(how.resize)) return how.resize;
  if (how.resize === null) {
    const ratio = Math.max(height / h, width / w); // just large enough to cover the input
    return [Math.max(roundEven(h * ratio), height), Math.max(roundEven(w * ratio), width)];
  }
  // As torchvision: the longer side is truncated, not rounded.
  if (h <= w) return [how.resize, Math.max(Math.floor((how.resize * w) / h), 1)];
  return [Math.max(Math.floor((how.resize * h) / w), 1), how.resize];
}

function padded(photo, [height, width], top, left, grey) {
  if (photo.height === height && photo.width === width) return photo;
  const data = new Uint8ClampedArray(height * width * 3).fill(grey);
  for (let y = 0; y < photo.height; y++) {
    const row = photo.data.subarray(y * photo.width * 3, (y + 1) * photo.width * 3);
    data.set(row, ((top + y) * width + left) * 3);
  }
  return { width, height, data };
}

/** Rec. 601's luma into the first of each pixel's channels, in OpenCV's fixed point. */
function toGrey(data) {
  for (let i = 0; i < data.length; i += 3) {
    data[i] = (9798 * data[i] + 19235 * data[i + 1] + 3735 * data[i + 2] + 2 ** 14) >> 15;
  }
}
