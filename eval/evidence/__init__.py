"""What a third party can check about a finished audit: its files, its figures, and a statement about it that can be signed."""
