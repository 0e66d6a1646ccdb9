// Records as /frame and /segment send them: length of the header, header, JPEG, mask, and the confidence if any.

/** Read the header and where the rest lies; nothing is decoded yet. */
export function readRecord(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { header, buffer, start: 4 + length };
}

/** Decode image, mask and confidence of a record; null where it has none. */
export async function decodeLayers({ header, buffer, start }) {
  if (!header.layers) return null;
  const { size_hw: [height, width], image, mask, confidence: length } = header.layers;
  const [bitmap, indices, confidence] = await Promise.all([
    createImageBitmap(new Blob([new Uint8Array(buffer, start, image)], { type: "image/jpeg" })),
    inflate(new Uint8Array(buffer, start + image, mask)),
    length ? inflate(new Uint8Array(buffer, start + image + mask, length)) : null,
  ]);
  return { width, height, bitmap, indices, confidence };
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
