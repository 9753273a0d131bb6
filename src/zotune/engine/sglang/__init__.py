"""Everything zotune knows of SGLang's inside. Each file lists at its top, as `NAMES`, what it touches there."""
