"""Validate cluster manifests, images and launcher files against the schemas of their tools."""
