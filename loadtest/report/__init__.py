"""What a load test found, as one HTML file with plots: no script, no request to anywhere, light and dark."""
