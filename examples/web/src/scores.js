/** The model's scores, best first. */

/**
 * @param {{data: ArrayLike<number>, dims: readonly number[]}|undefined} output of one image, (1, ...)
 * @param {object} score the record's
 * @returns {{index: number, score: number}[]} all classes; none where the task knows no order. Of a segmentation
 *   those that have pixels, and the score is their share of them.
 */
export function rank(output, score) {
  const task = score.task ?? "classification";
  if (!output || !["classification", "regression", "segmentation"].includes(task)) return [];
  const numbers = Array.from(output.data, Number);
  const scores = task === "segmentation" ? shares(numbers, output.dims, score) : numbers;
  const ranked = scores.map((value, index) => ({ index, score: value })).sort((a, b) => b.score - a.score);
  return task === "segmentation" ? ranked.filter((one) => one.score > 0) : ranked;
}

/** Per class of (1, K, H, W) or (1, H, W, K), the share of the pixels whose likeliest it is. */
function shares(numbers, [, ...dims], score) {
  const classes = score.classes;
  if (dims.length < 3 || !classes) return [];
  const last = dims[0] !== classes;
  const pixels = numbers.length / classes;
  const [step, stride] = last ? [classes, 1] : [1, pixels];
  const counts = new Array(classes).fill(0);
  for (let i = 0; i < pixels; i++) {
    let best = 0;
    for (let k = 1; k < classes; k++) {
      if (numbers[i * step + k * stride] > numbers[i * step + best * stride]) best = k;
    }
    counts[best]++;
  }
  const found = counts.map((count) => count / pixels);
  if (score.background != null) found[score.background] = 0;
  return found;
}

const UNITS = {
  segmentation: "share of the pixels",
  regression: "value",
  detection: "score",
  embedding: "similarity",
};

/** What a score is, in a word. */
export function unit({ score }) {
  return UNITS[score.task] ?? (score.activation ? "probability" : "logit");
}

function isShare(record) {
  return ["probability", "share of the pixels"].includes(unit(record));
}

/** A score as text. */
export function shown(score, record) {
  return isShare(record) ? percent(probability(score, record)) : score.toPrecision(3);
}

/** The scores' places on a bar from 0 to 1. */
export function bars(ranked, record) {
  if (isShare(record)) return ranked.map(({ score }) => probability(score, record));
  const scores = ranked.map(({ score }) => score);
  const [low, high] = [Math.min(0, ...scores), Math.max(...scores)];
  return scores.map((score) => (high > low ? (score - low) / (high - low) : 0));
}

function probability(score, record) {
  return record.score.activation === "log_softmax" ? Math.exp(score) : score;
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}
