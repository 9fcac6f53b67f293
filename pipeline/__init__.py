"""Raw logs in, validated sessions out."""
