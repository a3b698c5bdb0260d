"""The sample landscape: land, settlements, and the sensor that sees them."""
