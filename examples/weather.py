"""A tool for `tpudeploy run MODEL --tools examples/weather.py`; a real one would ask a weather service."""

from typing import Annotated

WEATHER = {"London": ("rain", 15), "Paris": ("cloudy", 12), "北京": ("晴", 26), "上海": ("小雨", 19)}


def get_weather(
    city: Annotated[str, "The city"],
    days: Annotated[int, "Number of days"] = 1,
) -> dict[str, str | int]:
    """Look up the weather of a city"""
    if city not in WEATHER:
        raise LookupError(f"no weather is known of {city}")
    weather, temperature = WEATHER[city]
    return {"city": city, "weather": weather, "temperature": temperature}
