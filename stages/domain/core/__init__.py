"""Types and functions that every task uses: records, timelines, frames, prompts, replies,
digests."""
