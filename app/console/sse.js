// Server-sent events, as far as a chat completion uses them: lines of data, comments, an end.

/** The data of each event of `stream`, a body of bytes, as it comes. Linear in its length, however it is cut. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let parts = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const lines = (done ? decoder.decode() : decoder.decode(value, { stream: true })).split("\n");
      parts.push(lines[0]);
      for (const next of lines.slice(1)) {
        const line = parts.join("");
        if (line.startsWith("data:")) yield line.slice(5).trim();
        parts = [next];
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
