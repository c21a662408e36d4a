import OpenAI from 'openai'

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY })
const model = process.env.MODEL
const messages = [{ role: 'user', content: 'What is the weather in Paris?' }]
const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const tools = [{ type: 'function', function: { name: 'get_weather', parameters } }]
const asked = { model, messages, tools, tool_choice: 'required', parallel_tool_calls: false, temperature: 0 }

const stream = client.chat.completions.stream({ model, messages, max_tokens: 20 })
let pieces = 0
for await (const chunk of stream) pieces += chunk.choices.length
console.log('pieces:', pieces, await stream.finalContent())
const reply = await client.chat.completions.create(asked)
console.log(reply.choices[0].message.tool_calls[0].function)
const response = await client.responses.create({ model, input: 'Say hello.', max_output_tokens: 16 })
console.log('response:', response.status, response.output_text)
const vectors = await client.embeddings.create({ model, input: ['one', 'two'] })
console.log('vectors:', vectors.data.length)
