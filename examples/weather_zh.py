"""`tpudeploy run MODEL --tools examples/weather_zh.py` 的工具；真正的工具会去问天气服务。"""

WEATHER = {"北京": ("晴", 26), "上海": ("小雨", 19), "广州": ("多云", 31)}


def get_weather(city: str, days: int = 1) -> dict[str, str | int]:
    """查询城市的天气

    :param city: 城市
    :param days: 天数
    """
    if city not in WEATHER:
        raise LookupError(f"不知道{city}的天气")
    weather, temperature = WEATHER[city]
    return {"city": city, "weather": weather, "temperature": temperature}
