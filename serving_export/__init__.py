"""Model in, item index and recommendation tables out."""
