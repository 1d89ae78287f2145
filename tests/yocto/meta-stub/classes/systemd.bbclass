# Packaging only.
