//! Which slot this boot runs from, and which boot it is.
