"""Bytes that outlive a host: media, bundles, transcripts; content-addressed, in the data folder or an object store."""
