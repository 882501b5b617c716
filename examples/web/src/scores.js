/** The model's scores, best first. */

/**
 * @param {{data: ArrayLike<number>, dims: readonly number[]}|undefined} output of one image, (1, ...)
 * @param {object} score the record's
 * @returns {{index: number, score: number, share?: number}[]} all classes; none where the task knows no order.
 *   Of a segmentation the score is the share of the pixels that are given to the class.
 */
export function rank(output, score) {
  const task = score.task ?? "classification";
  if (!output || !["classification", "regression", "segmentation"].includes(task)) return [];
  const numbers = Array.from(output.data, Number);
  const scores = task === "segmentation" ? shares(numbers, output.dims, score) : numbers;
  return scores.map((value, index) => ({ index, score: value })).sort((a, b) => b.score - a.score);
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

/** A score as text, and as a part of a bar from 0 to 1 among the others; see {@link unit} for what it is. */
export function shown(score, record) {
  switch (unit(record)) {
    case "logit":
    case "value":
      return score.toPrecision(3);
    default:
      return percent(probability(score, record));
  }
}

/** What a score is: a logit, a probability, a value, or a share of the pixels. */
export function unit({ score }) {
  const task = score.task ?? "classification";
  if (task === "segmentation") return "share of the pixels";
  if (task === "regression") return "value";
  return score.activation ? "probability" : "logit";
}

/** The scores' places on a bar from 0 to 1. */
export function bars(ranked, record) {
  if (!["logit", "value"].includes(unit(record))) return ranked.map(({ score }) => probability(score, record));
  const scores = ranked.map(({ score }) => score);
  const [low, high] = [Math.min(0, ...scores), Math.max(...scores)];
  return scores.map((score) => (high > low ? (score - low) / (high - low) : 0));
}

function probability(score, record) {
  return record.score.activation === "log_softmax" ? Math.exp(score) : score;
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}
