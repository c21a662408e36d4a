import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embed, generateObject, generateText, streamText, tool } from 'ai'
import { z } from 'zod'

const server = createOpenAICompatible({
  name: 'quire', baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, supportsStructuredOutputs: true,
})
const model = server(process.env.MODEL)

const { textStream } = streamText({ model, prompt: 'How do plants make food?', maxOutputTokens: 30 })
let pieces = 0
for await (const _ of textStream) pieces += 1
console.log('pieces:', pieces)
const getWeather = tool({ description: 'The weather in a city', inputSchema: z.object({ city: z.string() }) })
const { toolCalls } = await generateText({
  model, tools: { getWeather }, toolChoice: { type: 'tool', toolName: 'getWeather' }, temperature: 0,
  prompt: 'What is the weather in Paris?', maxOutputTokens: 100,
})
console.log(toolCalls[0].toolName, toolCalls[0].input)
const { object } = await generateObject({
  model, schema: z.object({ name: z.string(), age: z.number().int() }), prompt: 'Alice is 30.', temperature: 0,
})
console.log('object:', object)
const { embedding } = await embed({ model: server.textEmbeddingModel(process.env.MODEL), value: 'one' })
console.log('vector:', embedding.length)
