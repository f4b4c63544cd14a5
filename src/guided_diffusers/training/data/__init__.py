"""Image-text data: opened, decoded, cached, labelled."""
