"""REST: images and expressions over HTTP, answered in batches."""
