"""What a run will take on TPUs that are not here; see docs/scaling.md."""
