curl $BASE_URL/completions \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
  "model": "'$MODEL'",
  "prompt": "San Francisco is a",
  "max_tokens": 7,
  "temperature": 0
}'
