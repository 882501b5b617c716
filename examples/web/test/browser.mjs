/**
 * A page in a headless Chromium, this folder's or a file, for the tests in Python: a command per line of standard
 * input, as JSON [name, ...arguments]; a line of JSON with its result for each. CHROMIUM says which one is run.
 */

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { server } from "../serve.js";

const LIMIT = 60_000; // milliseconds for a command
const TYPES = { jpg: "image/jpeg", png: "image/png" };

const listening = server().listen(0, "localhost");
await new Promise((done) => listening.on("listening", done));
const origin = `http://localhost:${listening.address().port}`;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--use-fake-device-for-media-stream"],
});

let page;
let seen;

const commands = {
  /** A fresh page. `camera`: whether it is allowed; `without`: what of the server is not there; `at`: what is opened. */
  async open({ width = 1200, height = 900, dark = false, camera = false, without = null, at = origin } = {}) {
    await page?.context().close();
    const context = await browser.newContext({
      viewport: { width, height },
      colorScheme: dark ? "dark" : "light",
      permissions: camera ? ["camera"] : [],
    });
    page = await context.newPage();
    page.setDefaultTimeout(LIMIT);
    seen = { elsewhere: [], errors: [] };
    await context.route("**", (route) => {
      const url = route.request().url();
      if (!url.startsWith(at)) seen.elsewhere.push(url);
      if (!url.startsWith(at)) return route.abort();
      if (without && url.includes(without)) return route.fulfill({ status: 404 });
      return route.continue();
    });
    page.on("pageerror", (error) => seen.errors.push(String(error)));
    page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
    await page.addInitScript(() => {
      globalThis.runs = 0;
      document.addEventListener("explained", ({ detail }) => {
        globalThis.runs += 1;
        globalThis.explained = detail;
      });
    });
    await page.goto(at);
  },
  async click(selector) {
    await page.click(selector);
  },
  async press(key) {
    await page.keyboard.press(key);
  },
  async select(selector, value) {
    await page.selectOption(selector, value);
  },
  async fill(selector, value) {
    await page.fill(selector, value);
  },
  /** Drop files anywhere on the page. */
  async drop(paths) {
    const files = paths.map((path) => {
      const name = basename(path);
      return { name, type: TYPES[name.split(".").pop()] ?? "", data: readFileSync(path).toString("base64") };
    });
    const dataTransfer = await page.evaluateHandle((given) => {
      const transfer = new DataTransfer();
      for (const { name, type, data } of given) {
        transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
      }
      return transfer;
    }, files);
    await page.dispatchEvent("body", "drop", { dataTransfer });
  },
  /** Choose files with an input. */
  async choose(selector, paths) {
    await page.setInputFiles(selector, paths);
  },
  /** What the page shows once nothing runs any more. */
  async settled() {
    await page.waitForSelector('#figure[aria-busy="false"]');
    return page.evaluate(() => {
      const at = (id) => document.getElementById(id);
      const last = globalThis.explained;
      return {
        runs: globalThis.runs,
        heat: last && Array.from(last.heat),
        map: last && Array.from(last.map),
        shape: last && [last.height, last.width],
        index: last?.index,
        score: last?.score,
        ranked: last?.ranked,
        problem: at("problem").hidden ? null : at("problem").textContent,
        status: at("status").textContent,
        caption: at("caption").textContent,
        model: at("model-name").textContent,
        classes: [...at("classes").children].map((button) => ({
          index: Number(button.dataset.index),
          text: [...button.children].map((span) => span.textContent),
          pressed: button.getAttribute("aria-pressed") === "true",
        })),
      };
    });
  },
  /** Wait until an element says this. */
  async text(selector, text) {
    await page.waitForFunction(([s, t]) => document.querySelector(s).textContent === t, [selector, text]);
  },
  /** Wait for so many runs in all. */
  async runs(count) {
    await page.waitForFunction((n) => globalThis.runs >= n, count);
  },
  /** The two canvases' pixels as they lie over each other, as a PNG in base64. */
  async picture() {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
    return readFileSync(await download.path()).toString("base64");
  },
  async evaluate(expression) {
    return page.evaluate(expression);
  },
  async screenshot(path) {
    await page.screenshot({ path, fullPage: true });
  },
  /** As on "screen" or in "print". */
  async media(media) {
    await page.emulateMedia({ media });
  },
  async pdf(path) {
    await page.pdf({ path, format: "A4" });
  },
  async seen() {
    return seen;
  },
};

console.log(JSON.stringify({ ready: await browser.version() }));
for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line);
  try {
    console.log(JSON.stringify({ result: (await commands[name](...given)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
listening.close();
