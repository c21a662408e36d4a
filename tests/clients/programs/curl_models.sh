curl $BASE_URL/models -H "Authorization: Bearer $API_KEY"
