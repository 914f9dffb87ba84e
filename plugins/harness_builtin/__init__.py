"""The built-in components. They register through the same hooks and entry points as any plugin."""
