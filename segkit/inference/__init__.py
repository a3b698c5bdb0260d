"""From a scene to a map: windows, blending, bands, the journal, and who does the work."""
