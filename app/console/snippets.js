// What was asked, as a command and as a program that ask it again. The key is never in them: they name its variable.

/** `request` is the body that was sent; `url` the base of the API, ending in /v1; `keyed`: the server wants a key. */
export function asCurl(request, url, keyed) {
  const { stream, stream_options, ...body } = request; // one whole reply is easier to read
  const lines = [
    `curl ${quoted(`${url}/chat/completions`)}`,
    `-H 'Content-Type: application/json'`,
    ...(keyed ? ['-H "Authorization: Bearer $VLLM_API_KEY"'] : []),
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  return lines.join(" \\\n  ") + "\n";
}

/** One word of a shell, whatever is in it. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// JSON's texts and numbers are Python's too.
export function asPython(request, url, keyed) {
  const { model, messages, stream, stream_options, ...others } = request;
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(url)}, api_key=${keyed ? 'os.environ["VLLM_API_KEY"]' : '"none"'})`,
    "stream = client.chat.completions.create(",
    ...(model ? [`    model=${JSON.stringify(model)},`] : []),
    "    messages=[",
    ...messages.map(({ role, content }) => `        {"role": "${role}", "content": ${JSON.stringify(content)}},`),
    "    ],",
    ...Object.entries(others).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    "    stream=True,",
    ")",
    "for chunk in stream:",
    '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
    "print()",
    "",
  ].join("\n");
}
