/** Photos from files and from the camera, as RGB pixels. */

import { Problem } from "./errors.js";

/**
 * @param {Blob} blob an image file in any format that the browser knows, turned upright by its EXIF
 * @param {string} name for messages
 * @returns {Promise<import("./resize.js").Photo>} transparent pixels on white; colour profiles are not applied,
 *   as models are not trained with them applied either
 */
export async function decode(blob, name = "the photo") {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Problem(`${name} cannot be decoded as a photo. Choose a JPEG, PNG, WebP or AVIF file.`);
  });
  const photo = pixels(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return photo;
}

/**
 * @param {HTMLVideoElement} video that will show the camera
 * @returns {Promise<() => void>} what stops it
 */
export async function openCamera(video) {
  if (!navigator.mediaDevices) {
    throw new Problem(
      "The browser gives the camera to secure pages alone. Open this one by https:// or on http://localhost.",
    );
  }
  const wanted = { video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } };
  const stream = await navigator.mediaDevices.getUserMedia(wanted).catch((error) => {
    const otherwise = `The camera cannot be opened: ${error.message}. Drop a photo instead.`;
    throw new Problem(CAMERA[error.name] ?? otherwise);
  });
  const stop = () => {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  try {
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stop();
    throw new Problem(`The camera shows nothing: ${error.message}. Drop a photo instead.`);
  }
  return stop;
}

const CAMERA = {
  NotAllowedError: "The camera was refused. Allow it for this page in the browser's settings, or drop a photo.",
  NotFoundError: "There is no camera. Connect one, or drop a photo.",
  NotReadableError: "The camera is in use elsewhere. Close the other program, or drop a photo.",
};

/** The frame that a playing video shows. */
export function frame(video) {
  return pixels(video, video.videoWidth, video.videoHeight);
}

/** @returns {ImageData} of a photo, to be put on a canvas */
export function toImageData(photo) {
  const image = new ImageData(photo.width, photo.height);
  for (let i = 0, j = 0; j < photo.data.length; i += 4, j += 3) {
    image.data[i] = photo.data[j];
    image.data[i + 1] = photo.data[j + 1];
    image.data[i + 2] = photo.data[j + 2];
    image.data[i + 3] = 255;
  }
  return image;
}

function pixels(source, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true, alpha: false });
  if (!context) {
    throw new Problem(`A photo of ${width} × ${height} pixels is too large for this browser. Choose a smaller one.`);
  }
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  const rgba = context.getImageData(0, 0, width, height, { colorSpace: "srgb" }).data;
  const data = new Uint8ClampedArray(width * height * 3);
  for (let i = 0, j = 0; j < data.length; i += 4, j += 3) {
    data[j] = rgba[i];
    data[j + 1] = rgba[i + 1];
    data[j + 2] = rgba[i + 2];
  }
  return { width, height, data };
}
