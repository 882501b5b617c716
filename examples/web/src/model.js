/** An explainable file in a session of onnxruntime-web. */

import * as ort from "../node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { Problem } from "./errors.js";
import { heatmap } from "./heatmap.js";
import { apply } from "./preprocess.js";
import { roundEven } from "./resize.js";
import { CHOSEN_BOX, CLASS, CLASS_INDEX, SCORE, demandClass, readRecord } from "./record.js";
import { rank } from "./scores.js";

ort.env.wasm.wasmPaths = new URL("../node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
ort.env.wasm.proxy = true; // in a worker, so that the page stays responsive
ort.env.logLevel = "error"; // each input with a default is worth a warning to it

export const TOP_CLASS = -1;

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: globalThis.Float16Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
};
const LIMITS = { uint8: [0, 255], int8: [-128, 127], uint16: [0, 65535], int16: [-32768, 32767] };

/**
 * Open a file.
 *
 * @param {Uint8Array} bytes of the file; handed over: they cannot be used afterwards
 * @param {string} name for messages
 * @param {{path: string, data: Uint8Array}[]} beside files with the weights that are not in it, by name
 * @returns {Promise<Model>}
 * @throws {Problem} it cannot be explained here, or not run
 */
export async function open(bytes, name, beside = []) {
  const record = readRecord(bytes, name);
  const choosable = demandClass(bytes);
  const options = { executionProviders: ["wasm"], externalData: beside };
  const session = await ort.InferenceSession.create(bytes, options).catch((error) => {
    throw new Problem(refusal(name, String(error.message ?? error), beside.length > 0));
  });
  try {
    return new Model(name, record, session, choosable);
  } catch (error) {
    await session.release();
    throw error;
  }
}

function refusal(name, message, hasWeights) {
  if (!hasWeights && /external data|external tensor/i.test(message)) {
    return `${name} keeps its weights in a file beside it. Drop the two together.`;
  }
  const [what] = message.split("\n");
  return `onnxruntime-web cannot run ${name}: ${what} Check it with \`onnxcam doctor ${name}\`.`;
}

class Model {
  /** The run in progress; the next one waits for it. */
  #running = Promise.resolve();
  /** The last photo, and what {@link apply} made of it: another class or map needs it again. */
  #photo = null;
  #applied = null;
  #session;
  #choosable;

  constructor(name, record, session, choosable) {
    this.name = name;
    this.record = record;
    this.labels = record.labels ?? null;
    this.classes = choosable ? (record.score.classes ?? record.labels?.length ?? null) : null;
    this.#session = session;
    this.#choosable = choosable;
    this.input = imageInput(name, record, session);
    this.threads = ort.env.wasm.numThreads;
  }

  /** The name of a class. */
  label(index) {
    return this.labels?.[index] ?? `class ${index}`;
  }

  /** Free the session's memory. */
  async close() {
    await this.#running.catch(() => {});
    await this.#session.release();
  }

  /**
   * One photo's heatmap.
   *
   * @param {import("./resize.js").Photo} photo
   * @param {object} fused one of the record's
   * @param {number} classIndex TOP_CLASS, or which class is explained
   * @returns {Promise<object>} `heat` from 0 to 1 with `height` and `width`, over the model's input; `map`, as
   *   the file gives it; `geometry`; `ranked`, see scores.js; `index` and `score` of what was explained, null
   *   where the file does not say; `milliseconds` of the run
   */
  explain(photo, fused, classIndex = TOP_CLASS) {
    const run = this.#running.catch(() => {}).then(() => this.#explain(photo, fused, classIndex));
    this.#running = run;
    return run;
  }

  async #explain(photo, fused, classIndex) {
    if (this.#photo !== photo) [this.#photo, this.#applied] = [photo, apply(photo, this.record.preprocess)];
    const { values, dims, geometry } = this.#applied;
    const feeds = { [this.input.name]: tensor(this.input.type, values, dims) };
    if (this.#choosable) feeds[CLASS_INDEX] = new ort.Tensor("int64", [BigInt(classIndex)], [1]);
    const wanted = [fused.output, this.record.score.output, SCORE, CLASS, CHOSEN_BOX];
    const start = performance.now();
    const outputs = await this.#session
      .run(feeds, wanted.filter((output) => this.#session.outputNames.includes(output)))
      .catch((error) => {
        throw new Problem(`onnxruntime-web stopped while running ${this.name}: ${error.message ?? error}`);
      });
    const milliseconds = performance.now() - start;
    const map = outputs[fused.output];
    const ranked = rank(outputs[this.record.score.output], this.record.score);
    const index = classIndex >= 0 ? classIndex : Number(outputs[CLASS]?.data[0] ?? ranked[0]?.index ?? -1);
    const listed = ranked.find((one) => one.index === index)?.score;
    const score = listed ?? (this.record.score.task === "segmentation" ? 0 : (outputs[SCORE]?.data[0] ?? null));
    const data = Float32Array.from(map.data);
    return {
      heat: heatmap(data, fused),
      map: data,
      height: map.dims[1],
      width: map.dims[2],
      geometry,
      ranked,
      index: index < 0 ? null : index,
      score,
      box: outputs[CHOSEN_BOX]?.data ?? null,
      milliseconds,
    };
  }
}

/** The session's input that takes the photo: name and type. */
function imageInput(name, record, session) {
  const inputs = session.inputMetadata.filter((input) => input.name !== CLASS_INDEX);
  const image = inputs.find((input) => input.name === record.preprocess.input) ?? inputs[0];
  if (inputs.length > 1) {
    const others = inputs.filter((input) => input !== image).map((input) => `"${input.name}"`);
    throw new Problem(
      `${name} takes more than a photo (${others.join(", ")}), which this page has not got. ` +
        "Make these inputs constants of the model before it is rewritten.",
    );
  }
  if (!ARRAYS[image.type]) {
    throw new Problem(
      `${name} takes ${image.type} values, which this browser has no array for. ` +
        "Rewrite the model in float32, or use a newer browser.",
    );
  }
  return image;
}

function tensor(type, values, dims) {
  if (type === "float32") return new ort.Tensor(type, values.slice(), dims); // the worker takes the buffer away
  const limits = LIMITS[type];
  const rounded = limits
    ? values.map((v) => Math.min(Math.max(roundEven(v), limits[0]), limits[1]))
    : type.includes("int")
      ? values.map(roundEven)
      : values;
  return new ort.Tensor(type, ARRAYS[type].from(rounded), dims);
}
