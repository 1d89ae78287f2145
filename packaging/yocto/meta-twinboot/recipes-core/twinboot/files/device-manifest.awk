# Cargo.toml without what only the developer's machine needs: other workspace members, tests, benchmarks.
# Cargo wants the manifest and the dependencies of everything that is named, built or not.
/^\[/ { skipped = ($0 == "[dev-dependencies]" || $0 == "[[bench]]" || $0 == "[[test]]" || $0 == "[[example]]") }
skipped { next }
/^members = / { $0 = "members = []" }
{ print }
