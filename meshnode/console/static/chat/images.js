// Images for a prompt: files of the reader -> data URLs that a model takes, made small in this browser.

export const MOST_PIXELS = 1280;
export const MOST_IMAGES = 8;
const QUALITY = 0.85;

/** The images among files or pasted things. */
export const imagesIn = (files) => [...(files ?? [])].filter((file) => file.type.startsWith("image/"));

/** A data URL of an image of at most MOST_PIXELS on its longer side. Throws when it is none. */
export async function shrunk(file) {
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, MOST_PIXELS / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return canvas.toDataURL("image/jpeg", QUALITY);
}
