"""The report: one HTML page of a training run, a map, scores and estimated areas.

`inputs` sorts what is given; `sections` builds text and charts, `map_views` and `decision_maps` the data of the map;
`viewer` (with viewer.js and viewer.css) is the interactive map, `html` (with page.html) the page. A section or a layer
of the map goes here.
"""
