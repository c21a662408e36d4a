// Pictures for the next question, where the model takes some: chosen, dropped or pasted. They stay in this page, and go to
// the server within the question alone, as data: URLs. They are drawn, not loaded: the page's policy lets it load pictures
// of its own server only.

import { $, h, say } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]; // that the server reads

const WIDTH = 192; // of a picture that is shown, at most
const HEIGHT = 128;

let pictures = []; // {url, bitmap}
let taken = false; // the model takes them

export function start() {
  $("add-picture").addEventListener("click", () => $("picture-file").click());
  $("picture-file").addEventListener("change", () => {
    add($("picture-file").files);
    $("picture-file").value = "";
  });
  document.addEventListener("paste", (event) => {
    if (!$("chat-view").hidden && add(event.clipboardData.files)) event.preventDefault();
  });
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => {
      if (!taken || !event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // or the browser would open the file in place of this page
      if (name === "drop") add(event.dataTransfer.files);
    });
  }
}

/** Whether the model takes pictures. */
export function allow(yes) {
  taken = yes;
  if (!taken) pictures = [];
  $("add-picture").hidden = !taken;
  show();
}

/** The pictures, which are not those of the next question any more. */
export function take() {
  const all = pictures;
  pictures = [];
  show();
  return all;
}

/** As they were before `take`. */
export function giveBack(all) {
  pictures = [...all, ...pictures];
  show();
}

export function shown({ bitmap }, name) {
  const scale = Math.min(1, WIDTH / bitmap.width, HEIGHT / bitmap.height);
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = h("canvas", { width, height, class: "picture", role: "img", "aria-label": name });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

/** What a message holds: a text, or the pictures and the text. */
export const contentOf = (question, all) => (all.length
  ? [...all.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text: question }] : question);

/** Whether there was one to add. */
function add(files) {
  if (!taken || !files.length) return false;
  const known = [...files].filter(({ type }) => TYPES.includes(type));
  say($("picture-trouble"), known.length < files.length ? "Pictures are PNG, JPEG, WebP, GIF or BMP." : "");
  read(known);
  return known.length > 0;
}

async function read(files) {
  for (const file of files) {
    try {
      const bitmap = await createImageBitmap(file);
      pictures.push({ url: await dataUrlOf(file), bitmap });
    } catch {
      say($("picture-trouble"), `${file.name} cannot be read as a picture.`);
    }
  }
  show();
}

const dataUrlOf = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.addEventListener("load", () => resolve(reader.result));
  reader.addEventListener("error", () => reject(reader.error));
  reader.readAsDataURL(file);
});

function show() {
  $("pictures").replaceChildren(...pictures.map((picture, i) => h("li", {}, shown(picture, `Picture ${i + 1}`),
    h("button", { type: "button", class: "quiet", "aria-label": `Remove picture ${i + 1}`, onclick: () => {
      pictures.splice(i, 1);
      show();
    } }, "×"))));
  $("pictures").hidden = !pictures.length;
}
