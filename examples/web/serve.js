/** A static server for this folder: `node serve.js`, or PORT=9000 node serve.js. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, sep } from "node:path";
import { fileURLToPath } from "node:url";

const FOLDER = dirname(fileURLToPath(import.meta.url));

const TYPES = {
  ".css": "text/css",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".png": "image/png",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

// With the first two a browser gives the page shared memory, which threads of WebAssembly need. The third
// keeps the promise that nothing leaves the machine: the browser refuses any request to elsewhere.
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Content-Security-Policy":
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; " +
    "img-src 'self' blob: data:; media-src 'self' blob:",
  "Cache-Control": "no-cache",
};

/** A server, not yet listening. */
export function server() {
  return createServer(async (request, response) => {
    const path = fileOf(request.url);
    const found = path && (await stat(path).catch(() => null));
    if (!found?.isFile()) {
      response.writeHead(404, { "Content-Type": "text/plain" }).end("There is no such file.\n");
      return;
    }
    const type = TYPES[extname(path)] ?? "application/octet-stream";
    response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": found.size });
    if (request.method === "HEAD") response.end();
    else createReadStream(path).pipe(response);
  });
}

/** The file that a request asks for; null outside the folder. */
function fileOf(url) {
  try {
    const { pathname } = new URL(url, "http://localhost");
    const path = join(FOLDER, decodeURIComponent(pathname));
    if (!path.startsWith(FOLDER + sep)) return null;
    return path.endsWith(sep) ? join(path, "index.html") : path;
  } catch {
    return null;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const port = Number(process.env.PORT ?? 8080);
  // Of this machine alone; browsers give the camera to localhost without a certificate.
  server()
    .on("error", (error) => {
      const next = error.code === "EADDRINUSE" ? " Choose another one: PORT=8081 npm start" : "";
      console.error(`Port ${port} cannot be opened: ${error.message}.${next}`);
      process.exit(1);
    })
    .listen(port, "localhost", function () {
      console.log(`http://localhost:${this.address().port}/  (Ctrl-C ends it)`);
    });
}
