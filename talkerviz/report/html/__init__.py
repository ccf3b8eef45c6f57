"""Page of the report: one HTML file without external resources."""
