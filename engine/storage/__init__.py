"""Objects at addresses such as ``s3://bucket/key``, through fsspec: recordings, outputs, models and banks."""
