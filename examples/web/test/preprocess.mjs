/**
 * Preprocessing and its way back, for tests/web/test_preprocess.py: `node preprocess.mjs FOLDER`.
 *
 * FOLDER/cases.json is a list of {photo: [height, width], how, grid: [height, width]}; i.rgb is a case's photo
 * and i.grid a map over its input (float32). Written are i.values, the input (float32), and i.map, the map on the
 * photo, NaN where the model does not see it.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { apply, toPhoto } from "../src/preprocess.js";

const folder = process.argv[2];
const read = (name) => readFileSync(join(folder, name));

JSON.parse(read("cases.json")).forEach(({ photo, how, grid }, i) => {
  const { values, geometry } = apply({ height: photo[0], width: photo[1], data: read(`${i}.rgb`) }, how);
  const cells = new Float32Array(new Uint8Array(read(`${i}.grid`)).buffer);
  writeFileSync(join(folder, `${i}.values`), values);
  writeFileSync(join(folder, `${i}.map`), toPhoto({ data: cells, height: grid[0], width: grid[1] }, geometry));
});
