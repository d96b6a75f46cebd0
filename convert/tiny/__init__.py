"""Makes the small gpt-oss that ships with the package: conversations, training, packing, proof."""
