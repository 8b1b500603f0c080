from search_space.errors import UsageError


def test_a_message_is_one_line() -> None:
    error = UsageError("window: 12 is\n   not a multiple\tof 5")
    assert str(error) == "window: 12 is not a multiple of 5"
    assert isinstance(error, ValueError)
