"""Tasks whose models read pages: text in pictures, and whole documents."""
