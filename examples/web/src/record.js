/** The record of an explainable file: what onnxcam writes into the ONNX metadata property "onnxcam". */

import { Problem } from "./errors.js";
import { fields, text } from "./protobuf.js";

export const SCHEMA = 1; // the newest that this page reads
export const CLASS_INDEX = "cam.class_index"; // input, int64 [N]; -1 is each image's top class
export const SCORE = "cam.score"; // output, float32 [N]
export const CLASS = "cam.class"; // output, int64 [N]
export const CHOSEN_BOX = "cam.chosen_box"; // output, float32 [N, 4]: corners in pixels of the model's input

// Fields of ONNX's messages, by their numbers in onnx.proto.
const MODEL = { irVersion: 1, graph: 7, metadata: 14 };
const GRAPH = { initializer: 5, unused: 9 };
const TENSOR = { name: 8 };
const ENTRY = { key: 1, value: 2 };

/** What a record's `preprocess` has where it says nothing, as onnxcam/contract.py has it. */
export const PREPROCESS = {
  input: "",
  size: [224, 224],
  fit: "stretch",
  resize: null,
  interpolation: "linear",
  antialias: true,
  channels: "RGB",
  scale: 1 / 255,
  mean: [0],
  std: [1],
  layout: "NCHW",
  pad_value: 114,
  anchor: "center",
};

/** The fields of `preprocess` that have one of a few values. */
export const CHOICES = {
  fit: ["stretch", "crop", "letterbox"],
  interpolation: ["nearest", "linear", "cubic", "lanczos", "area"],
  channels: ["RGB", "BGR", "L"],
  layout: ["NCHW", "NHWC"],
  anchor: ["center", "top-left"],
};

/**
 * The record of an explainable file that computes maps itself, made by `onnxcam rewrite --fuse METHOD`.
 *
 * @param {Uint8Array} bytes of the file
 * @param {string} name of the file, for messages
 * @returns {object} as onnxcam/contract.py's Record has it: `fused`, `score`, `labels`, `preprocess`, ...
 * @throws {Problem} not ONNX, not explainable, without a map of its own, of a newer schema, or damaged
 */
export function readRecord(bytes, name = "the file") {
  const json = metadata(bytes, name).get("onnxcam");
  const [source, target] = [name, name.replace(/(\.cam)?\.onnx$/, "") + ".cam.onnx"].map(quoted);
  if (json === undefined) {
    throw new Problem(
      `${name} is an ONNX model, but not an explainable one. Make one of it with ` +
        `\`onnxcam rewrite ${source} -o ${target} --fuse gradcam --preprocess imagenet\` and drop that.`,
    );
  }
  const record = parsed(json, name);
  if (record.tail_of) {
    throw new Problem(
      `${name} is what follows one layer of ${record.tail_of}, not a whole model. Drop ${record.tail_of} itself.`,
    );
  }
  if (!record.fused.length) {
    throw new Problem(
      `${name} is explainable but computes no map itself. Rewrite it with ` +
        `\`onnxcam rewrite ${source} -o fused.cam.onnx --fuse gradcam\` and drop that.`,
    );
  }
  if (!record.preprocess) {
    throw new Problem(
      `${name} does not say how a photo becomes its input. Rewrite it with ` +
        `\`onnxcam rewrite ${source} -o photos.cam.onnx --fuse gradcam --preprocess imagenet\`, ` +
        "or with the preset that it was trained with.",
    );
  }
  return record;
}

/** A file's name as it stands in a command. */
function quoted(name) {
  return /^[\w.-]+$/.test(name) ? name : `"${name}"`;
}

/** The metadata properties of an ONNX file. */
function metadata(bytes, name) {
  const found = new Map();
  const seen = new Set();
  try {
    for (const { number, value } of fields(bytes)) {
      seen.add(number);
      if (number === MODEL.metadata) found.set(text(value, ENTRY.key), text(value, ENTRY.value));
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    seen.clear();
  }
  if (!seen.has(MODEL.irVersion) || !seen.has(MODEL.graph)) {
    throw new Problem(
      `${name} is not an ONNX file, or only a part of one. Choose a whole one; its name ends in .cam.onnx.`,
    );
  }
  return found;
}

function parsed(json, name) {
  const damaged = (why) =>
    new Problem(`The onnxcam record of ${name} is damaged: ${why}. Rewrite the source model.`);
  let record;
  try {
    record = JSON.parse(json);
  } catch {
    throw damaged("it is not JSON");
  }
  if (!Number.isInteger(record?.schema) || record.schema < 1) throw damaged("it has no schema number");
  if (record.schema > SCHEMA) {
    throw new Problem(
      `The onnxcam record of ${name} has schema ${record.schema}, but this page reads up to ${SCHEMA}. ` +
        "Take the page of a newer onnxcam, or rewrite the source model with this one.",
    );
  }
  if (typeof record.score?.output !== "string") throw damaged("it has no score");
  record.fused ??= [];
  if (!Array.isArray(record.fused) || record.fused.some((map) => typeof map?.output !== "string")) {
    throw damaged("its fused maps are not a list of outputs");
  }
  if (record.preprocess) {
    record.preprocess = { ...PREPROCESS, ...record.preprocess };
    for (const [field, known] of Object.entries(CHOICES)) {
      const value = record.preprocess[field];
      if (!known.includes(value)) throw damaged(`preprocess.${field} is ${JSON.stringify(value)}`);
    }
    for (const field of ["size", "mean", "std"]) {
      const value = record.preprocess[field];
      const numbers = Array.isArray(value) && value.length > 0 && value.every(Number.isFinite);
      if (!numbers) throw damaged(`preprocess.${field} is ${JSON.stringify(value)}`);
    }
  }
  return record;
}

/**
 * Make the choice of a class an input that must be fed.
 *
 * In an explainable file it is one with a default: an input with an initializer of the same name.
 * onnxruntime-web (1.30) lists no such inputs and refuses to be fed them. Here the initializer goes: its tag
 * gets a field number that ONNX does not use, which every reader skips. One byte changes, in place.
 *
 * @param {Uint8Array} bytes of the file; changed
 * @returns {boolean} whether there is such an input
 */
export function demandClass(bytes) {
  for (const model of fields(bytes)) {
    if (model.number !== MODEL.graph) continue;
    for (const { number, value, start } of fields(model.value)) {
      if (number === GRAPH.initializer && text(value, TENSOR.name) === CLASS_INDEX) {
        model.value[start] = GRAPH.unused * 8 + 2;
        return true;
      }
    }
  }
  return false;
}
