/** The page: what is pressed, dropped and shown. */

import { COLORMAPS } from "./colormaps.js";
import { Problem } from "./errors.js";
import { colourize, dimUnseen, scaled } from "./heatmap.js";
import { decode, frame, openCamera, toImageData } from "./photo.js";
import { shownAt, toPhoto } from "./preprocess.js";
import { bars, shown, unit } from "./scores.js";

const TOP = 5; // classes that have a button
const TOP_CLASS = -1; // which class is explained: the likeliest
const SIDES = [640, 1024]; // least and greatest longer side of the picture, in pixels

const at = (id) => document.getElementById(id);

const state = {
  model: null, // of model.js
  fused: null, // one of its record's maps
  photo: null, // RGB
  sheet: null, // the photo on a canvas
  classIndex: TOP_CLASS,
  result: null, // of the last run
  stopCamera: null,
};

// -- explaining ---------------------------------------------------------------------------------------

let running = null;
let outdated = false;

/** Explain what the state says; while one run goes on, any number of calls makes one more. */
function explain() {
  outdated = true;
  running ??= explainAll().finally(() => {
    running = null;
    if (outdated && state.model && state.photo) explain(); // asked for after the last look
  });
  return running;
}

async function explainAll() {
  while (outdated && state.model && state.photo) {
    outdated = false;
    const { model, fused, photo, classIndex } = state;
    busy(state.stopCamera ? null : "Running…");
    try {
      const result = await model.explain(photo, fused, classIndex);
      if (model !== state.model) continue;
      state.result = { ...result, model, fused, photo };
      paint();
      describe();
      document.dispatchEvent(new CustomEvent("explained", { detail: state.result }));
    } catch (error) {
      stopCamera();
      problem(error);
    }
  }
  idle();
}

// -- painting -----------------------------------------------------------------------------------------

/** The photo on the lower canvas, the heatmap's colours on the upper one, whose opacity is the blend. */
function paint() {
  const { photo, heat, height, width, geometry, box } = state.result;
  const longer = Math.max(photo.height, photo.width);
  const factor = Math.min(Math.max(longer, SIDES[0]), SIDES[1]) / longer;
  const size = [photo.height, photo.width].map((n) => Math.max(Math.round(n * factor), 1));
  const placed = shownAt(geometry, size);
  state.result.placed = scaled(toPhoto({ data: heat, height, width }, placed)); // by what the model saw
  for (const canvas of [at("photo"), at("heat")]) [canvas.height, canvas.width] = size;
  const context = at("photo").getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(sheetOf(photo), 0, 0, size[1], size[0]);
  const image = context.getImageData(0, 0, size[1], size[0]);
  dimUnseen(image.data, state.result.placed);
  context.putImageData(image, 0, 0);
  const colours = new ImageData(colourize(state.result.placed, at("colormap").value), size[1], size[0]);
  at("heat").getContext("2d").putImageData(colours, 0, 0);
  if (box) ["photo", "heat"].forEach((id) => frameBox(at(id).getContext("2d"), box, placed));
}

/** The photo as a canvas, made once. */
function sheetOf(photo) {
  if (state.sheet?.photo !== photo) {
    const canvas = new OffscreenCanvas(photo.width, photo.height);
    canvas.getContext("2d").putImageData(toImageData(photo), 0, 0);
    state.sheet = { photo, canvas };
  }
  return state.sheet.canvas;
}

/** A frame around what was detected, white in black so that it shows on any ground. */
function frameBox(context, [x1, y1, x2, y2], { scale, offset }) {
  const [left, right] = [x1, x2].map((x) => (x - offset[1]) / scale[1]);
  const [top, bottom] = [y1, y2].map((y) => (y - offset[0]) / scale[0]);
  for (const [colour, width] of [["#000", 6], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

const UNNAMED = { detection: "the best detection", embedding: "what makes the embedding" };

/** The caption, the classes' buttons and the status. */
function describe() {
  const { model, fused, index, score, heat, milliseconds } = state.result;
  const name = index === null ? (UNNAMED[model.record.score.task] ?? "the likeliest") : model.label(index);
  const value = score === null ? "" : `, ${unit(model.record)} ${shown(score, model.record)}`;
  const nothing = heat.every((v) => v === 0) ? " Nothing speaks for it: the map is zero." : "";
  const bold = Object.assign(document.createElement("b"), { textContent: name });
  at("caption").replaceChildren(bold, `${value}, by ${fused.method}.${nothing}`);
  at("heat").setAttribute("aria-label", `The heatmap of ${name}`);
  listClasses();
  const workers = model.threads === 1 ? "one thread" : `${model.threads} threads`;
  status(`${Math.round(milliseconds)} ms for the prediction and its map, in WebAssembly on ${workers}.`);
}

function listClasses() {
  const { model, ranked, index, score } = state.result;
  const heights = bars(ranked, model.record);
  const listed = ranked.map((one, i) => ({ ...one, bar: heights[i] })).slice(0, TOP);
  if (index !== null && !listed.some((one) => one.index === index)) {
    const place = ranked.findIndex((one) => one.index === index);
    listed.push({ index, score, bar: heights[place] ?? 0 });
  }
  const focused = document.activeElement?.dataset?.index;
  at("classes").replaceChildren(...listed.map((one) => classButton(one, model, one.index === index)));
  if (focused !== undefined) at("classes").querySelector(`[data-index="${focused}"]`)?.focus();
  at("classes-hint").textContent = model.classes === null
    ? "The file explains what it finds; it takes no choice of a class."
    : `By ${unit(model.record)}. Press one to see where the model sees it.`;
  at("follow").hidden = state.classIndex === TOP_CLASS;
  at("other").value = String(state.classIndex);
}

function classButton({ index, score, bar }, model, pressed) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.index = index;
  button.disabled = model.classes === null;
  button.setAttribute("aria-pressed", pressed);
  button.style.setProperty("--bar", Math.max(bar, 0));
  for (const text of [model.label(index), score === null ? "" : shown(score, model.record)]) {
    button.append(Object.assign(document.createElement("span"), { textContent: text, title: text }));
  }
  button.addEventListener("click", () => choose(index));
  return button;
}

function choose(index) {
  state.classIndex = index;
  problem(null);
  explain();
}

// -- photos, the camera, models ------------------------------------------------------------------------

async function takePhoto(blob, name) {
  stopCamera();
  busy("Reading the photo…");
  const photo = await decode(blob, name);
  Object.assign(state, { photo, classIndex: TOP_CLASS });
  await explain();
}

async function takeModel(files) {
  const file = files.find(({ name }) => name.endsWith(".onnx")) ?? files[0];
  busy(`Opening ${file.name}…`);
  const { open } = await import("./model.js").catch(() => {
    throw new Problem("onnxruntime-web is not there: run `npm ci` in examples/web and reload this page.");
  });
  const beside = files.filter((other) => other !== file);
  const weights = await Promise.all(beside.map(async (one) => ({ path: one.name, data: await bytesOf(one) })));
  const model = await open(await bytesOf(file), file.name, weights);
  const before = state.model;
  Object.assign(state, { model, fused: model.record.fused[0], classIndex: TOP_CLASS, result: null });
  showModel();
  before?.close();
  await explain();
}

async function bytesOf(file) {
  const buffer = await file.arrayBuffer().catch(() => {
    throw new Problem(`${file.name} is too large for this browser, or can no longer be read. Choose it again.`);
  });
  return new Uint8Array(buffer);
}

function showModel() {
  const { model } = state;
  const { preprocess, fused } = model.record;
  at("model-name").textContent = model.name;
  at("method-row").hidden = false;
  const [height, width] = preprocess.size;
  const classes = model.classes ? `, ${model.classes} classes` : "";
  at("model-facts").textContent = `${preprocess.fit} to ${width} × ${height}, ${preprocess.channels}${classes}`;
  const layered = new Set(fused.map(({ layers }) => String(layers))).size > 1;
  at("method").replaceChildren(...fused.map((map, i) => new Option(layered ? told(map) : map.method, i)));
  const few = (model.classes ?? 0) <= TOP;
  at("other-row").hidden = few;
  const options = Array.from({ length: few ? 0 : model.classes }, (_, i) => new Option(model.label(i), i));
  at("other").replaceChildren(new Option("Another class…", TOP_CLASS), ...options);
  at("classes").replaceChildren();
}

/** A map in words: gradcam at layer4. */
function told({ method, layers }) {
  return layers?.length ? `${method} at ${layers.join(", ")}` : method;
}

async function toggleCamera() {
  if (state.stopCamera) return stopCamera();
  at("camera").disabled = true; // while the browser asks
  try {
    state.stopCamera = await openCamera(at("video"));
  } finally {
    at("camera").disabled = false;
  }
  state.classIndex = TOP_CLASS;
  showCamera(true);
  while (state.stopCamera) {
    state.photo = frame(at("video"));
    await explain();
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  state.stopCamera?.();
  state.stopCamera = null;
  showCamera(false);
}

function showCamera(on) {
  at("camera").setAttribute("aria-pressed", on);
  at("camera").textContent = on ? "Stop the camera" : "Use the camera";
  at("status").setAttribute("aria-live", on ? "off" : "polite"); // not each frame is worth reading out
}

async function save() {
  const { width, height } = at("photo");
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(at("photo"), 0, 0);
  context.globalAlpha = at("blend").value / 100;
  context.drawImage(at("heat"), 0, 0);
  const url = URL.createObjectURL(await canvas.convertToBlob());
  const name = state.result.index === null ? "heatmap" : state.model.label(state.result.index);
  Object.assign(document.createElement("a"), { href: url, download: `${name}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Photos and models, wherever on the page they are dropped. */
async function takeFiles(files) {
  if (!files.length) return;
  const [first] = files;
  if (files.some(({ name }) => name.endsWith(".onnx")) || !first.type.startsWith("image/")) await takeModel(files);
  else await takePhoto(first, first.name);
}

// -- what the visitor is told --------------------------------------------------------------------------

function status(text) {
  at("status").textContent = text;
}

function busy(text) {
  at("figure").setAttribute("aria-busy", true);
  if (text) status(text);
}

function idle() {
  at("figure").setAttribute("aria-busy", false);
  at("save").disabled = !state.result;
}

/** Show what went wrong; null: nothing did. */
function problem(error) {
  at("problem").hidden = !error;
  if (!error) return;
  if (!(error instanceof Problem)) console.error(error);
  const unexpected = `Something unexpected happened: ${error.message}. Reload the page.`;
  at("problem").replaceChildren(...withCode(error instanceof Problem ? error.message : unexpected));
  at("problem").scrollIntoView({ block: "nearest" });
  status(state.result ? "The picture is the last one that worked." : "");
  idle();
}

/** Text whose parts in backticks are shown as code. */
function withCode(text) {
  return text.split("`").map((part, i) =>
    i % 2 ? Object.assign(document.createElement("code"), { textContent: part }) : part,
  );
}

/** Run a visitor's wish and tell what becomes of it. */
async function attempt(wish) {
  problem(null);
  try {
    await wish();
  } catch (error) {
    problem(error);
  }
}

// -- wiring --------------------------------------------------------------------------------------------

function setBlend() {
  const { value } = at("blend");
  at("blend-value").textContent = `${value} %`;
  at("heat").style.opacity = value / 100;
}

function setColormap() {
  const table = COLORMAPS[at("colormap").value];
  const stops = Array.from({ length: 17 }, (_, i) => table.subarray(3 * Math.min(16 * i, 255)).slice(0, 3));
  at("ramp").style.background = `linear-gradient(to right, ${stops.map((rgb) => `rgb(${rgb})`)})`;
  if (state.result) paint();
}

at("colormap").replaceChildren(...Object.keys(COLORMAPS).map((name) => new Option(name)));
at("colormap").addEventListener("change", setColormap);
at("blend").addEventListener("input", setBlend);
at("method").addEventListener("change", ({ target }) => {
  state.fused = state.model.record.fused[target.value];
  problem(null);
  explain();
});
at("other").addEventListener("change", ({ target }) => choose(Number(target.value)));
at("follow").addEventListener("click", () => choose(TOP_CLASS));
at("camera").addEventListener("click", () => attempt(toggleCamera));
at("save").addEventListener("click", () => attempt(save));
for (const id of ["photo-file", "model-file"]) {
  at(id).addEventListener("change", async ({ target }) => {
    const files = [...target.files];
    target.value = ""; // so that the same file can be chosen again
    const take = id === "photo-file" ? () => takePhoto(files[0], files[0].name) : () => takeModel(files);
    if (files.length) await attempt(take);
  });
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  attempt(() => takeFiles([...event.dataTransfer.files]));
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) attempt(() => takeFiles([...event.clipboardData.files]));
});

setBlend();
setColormap();
busy("Loading the demo: its model and onnxruntime-web…");
await attempt(async () => {
  const get = async (name) => {
    const response = await fetch(new URL(`../demo/${name}`, import.meta.url));
    if (!response.ok) throw new Problem(`demo/${name} is not there. Drop a photo and a .cam.onnx of your own.`);
    return new File([await response.blob()], name);
  };
  state.photo = await decode(await get("photo.png"));
  await takeModel([await get("demo.cam.onnx")]);
});
