curl $BASE_URL/chat/completions \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
"model": "'$MODEL'",
"messages": [
{"role": "system", "content": "你是一个有用的助手。"},
{"role": "user", "content": [
{"type": "image_url",
"image_url": {
"url": "https://images.invalid/qwen.png"}
},
{"type": "text", "text": "插图中的文本是什么?"}
]
}
]
}'
