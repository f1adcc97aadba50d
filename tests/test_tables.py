"""Tables and bars of text: aligned, and as wide as there is room."""

from gateway.core import tables


def test_a_table_is_aligned_and_cut_to_the_width() -> None:
    columns = (tables.Column("name"), tables.Column("requests", is_number=True))
    rows = [["alice", "1,204"], ["bob-with-a-long-name", "0"]]
    assert tables.render(columns, rows).splitlines() == [
        "NAME                  REQUESTS",
        "alice                    1,204",
        "bob-with-a-long-name         0",
    ]
    assert tables.render(columns, rows, width=20).splitlines() == [
        "NAME        REQUESTS",
        "alice          1,204",
        "bob-with-…         0",
    ]


def test_a_wide_character_takes_two_places() -> None:
    columns = (tables.Column("name"), tables.Column("n", is_number=True))
    assert tables.render(columns, [["日本", "1"], ["abcd", "2"]]).splitlines() == ["NAME  N", "日本  1", "abcd  2"]


def test_a_table_without_rows_has_its_headings() -> None:
    assert tables.render((tables.Column("name"),), [], width=3) == "NAME"


def test_in_a_narrow_table_whole_columns_stay_whole_and_others_are_left_out() -> None:
    columns = (
        tables.Column("name"),
        tables.Column("key", is_whole=True, leave_out=1),
        tables.Column("requests", is_number=True),
        tables.Column("last used", is_whole=True, leave_out=2),
    )
    rows = [["a-long-name-of-a-key", "sk-ant-om1-k7f3", "12", "2026-09-21"]]
    assert (
        tables.render(columns, rows, width=50).splitlines()[1].endswith("…  sk-ant-om1-k7f3        12  2026-09-21")
    )
    assert tables.width_of(tables.render(columns, rows, width=50)) <= 50
    assert tables.render(columns, rows, width=38).splitlines()[1] == "a-long-nam…  sk-ant-om1-k7f3        12"
    assert tables.render(columns, rows, width=20).splitlines()[1] == "a-long-na…        12"


def test_a_column_is_left_out_before_two_texts_are_cut_to_the_same() -> None:
    columns = (
        tables.Column("model"),
        tables.Column("input", is_number=True, leave_out=1),
        tables.Column("cache write", is_number=True, leave_out=2),
    )
    alike = [["claude-sonnet-4-5-20250929", "1", "2"], ["claude-sonnet-4-5-20251015", "3", "4"]]
    assert [line.split() for line in tables.render(columns, alike, width=40).splitlines()] == [
        ["MODEL", "INPUT"],
        ["claude-sonnet-4-5-20250929", "1"],
        ["claude-sonnet-4-5-20251015", "3"],
    ]
    different = [["claude-sonnet-4-5-20250929", "1", "2"], ["claude-haiku-4-5-20251015", "3", "4"]]
    assert tables.render(columns, different, width=40).splitlines()[0].endswith("INPUT  CACHE WRITE")
    assert tables.width_of(tables.render(columns, alike, width=20)) <= 20


def test_a_bar_is_as_long_as_its_part_and_what_is_not_nothing_is_seen() -> None:
    drawn = [tables.bar(part, 100, 10, has_blocks=True) for part in (0, 1, 5, 25, 100)]
    assert drawn == ["", "▏", "▌", "██▌", "█" * 10]
    assert [tables.bar(part, 100, 10, has_blocks=False) for part in (0, 1, 25, 100)] == ["", "#", "##", "#" * 10]
    assert tables.bar(0, 0, 10, has_blocks=True) == ""
