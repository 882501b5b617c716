/** A heatmap as a picture: coloured, to be laid over the photo. */

import { COLORMAPS } from "./colormaps.js";

const EPSILON = 1e-7; // as onnxcam/postprocess.py has it: a map of zeros stays zero
export const SIGNED = ["activation_mean", "cam"]; // methods whose negative evidence takes part in the scaling
const DIM = 0.45; // brightness of what the model never saw, as in onnxcam/overlay.py

/**
 * A map from 0 to 1, scaled by its own range: z = M - min M, then z / (max z + 1e-7).
 *
 * @param {Float32Array} map NaN where there is nothing, which stays
 */
export function scaled(map) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of map) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return map.map((value) => (value - low) / (high - low + EPSILON));
}

/**
 * A fused map as a heatmap from 0 to 1: as it is if the file scaled it, else scaled, without its negative
 * evidence but for methods of {@link SIGNED}.
 *
 * @param {Float32Array} map
 * @param {{method: string, scaled: boolean}} fused of the record
 */
export function heatmap(map, fused) {
  if (fused.scaled !== false) return map;
  return scaled(SIGNED.includes(fused.method) ? map : map.map((value) => Math.max(value, 0)));
}

/**
 * The heatmap's colours, to be blended over the photo.
 *
 * @param {Float32Array} heat from 0 to 1, row by row; NaN where the model never saw the photo: transparent there
 * @param {string} colormap one of COLORMAPS
 * @returns {Uint8ClampedArray} RGBA
 */
export function colourize(heat, colormap) {
  const table = COLORMAPS[colormap];
  const rgba = new Uint8ClampedArray(heat.length * 4);
  heat.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    const entry = 3 * Math.floor(255 * Math.min(Math.max(value, 0), 1));
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = table[entry + c];
    rgba[4 * i + 3] = 255;
  });
  return rgba;
}

/** Make what the model never saw (NaN in `heat`) grey and dark, in place in the photo's RGBA pixels. */
export function dimUnseen(rgba, heat) {
  heat.forEach((value, i) => {
    if (!Number.isNaN(value)) return;
    const grey = (0.299 * rgba[4 * i] + 0.587 * rgba[4 * i + 1] + 0.114 * rgba[4 * i + 2]) * DIM;
    rgba.fill(grey, 4 * i, 4 * i + 3);
  });
}
