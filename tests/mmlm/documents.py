"""Documents drawn for the tests: what is written in them is known."""

import random
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
INK, PAPER = (20, 20, 25), (255, 255, 255)

SELLERS = ["Harbour Lights Ltd", "Nord & Sons", "Blue Fern Studio", "Acme Tools Inc.", "Green Valley Farm"]
BUYERS = ["Maria Lopez", "Jonas Weber", "Hill Street School", "Olsen Bakery", "R. K. Patel"]
STREETS = ["12 Mill Lane", "Hauptweg 8", "401 Oak Avenue", "77 Station Road", "5 Quay Street"]
GOODS = ["Paper, A4", "Desk lamp", "Web design", "Oak shelf", "Hosting", "Garden chair", "Ink, black", "Repair work"]
TOTALS = ["Total", "TOTAL", "Total due", "Grand total", "Total:", "Amount due"]
MONEY = ["${}", "{} EUR", "£{}", "€{}", "USD {}", "CHF {}"]


def font(size, name="DejaVuSans"):
    return ImageFont.truetype(FONTS / f"{name}.ttf", size)


def write(draw, x, y, text, size, *, right=False, name="DejaVuSans", ink=INK):
    """Text whose left (or right) end is at x, and whose ascent begins at y."""
    draw.text((x, y), text, fill=ink, font=font(size, name), anchor="ra" if right else "la")


def invoice(seed):
    """An invoice, and the number on it that is its total, as written."""
    drawn = random.Random(seed)
    width, size = drawn.choice([(620, 17), (800, 20), (1100, 28), (1500, 34)])
    name = drawn.choice(["DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold"])
    if "Mono" in name:
        size = size * 5 // 6
    money = drawn.choice(MONEY)
    items = [
        (good, count, price, count * price)
        for good in drawn.sample(GOODS, drawn.randint(1, 5))
        for count, price in [(drawn.randint(1, 9), drawn.randrange(150, 40000))]
    ]
    net = sum(amount for *_, amount in items)
    tax = net * drawn.choice([0, 7, 19, 20]) // 100
    step, left, end = int(size * drawn.uniform(1.5, 2)), int(width * 0.08), int(width * 0.92)
    image = Image.new("RGB", (width, step * (len(items) + 17)), PAPER)
    draw = ImageDraw.Draw(image)
    y = step

    def row(*cells, gap=1.0):
        """Cells (x, text, stands at the right of x) in a row."""
        nonlocal y
        for x, text, right in cells:
            write(draw, x, y, text, size, right=right, name=name)
        y += int(step * gap)

    def cents(number):
        return f"{number // 100:,}.{number % 100:02}"

    title, seller, number = "INVOICE", drawn.choice(SELLERS), f"No. {drawn.randint(1000, 9999)}"
    date = f"2026-{drawn.randint(1, 12):02}-{drawn.randint(1, 28):02}"
    if drawn.random() < 0.5:
        row((left, seller, False), (end, title, True))
        row((left, drawn.choice(STREETS), False), (end, number, True))
        row((end, date, True), gap=2)
    else:
        row((left, title, False), gap=1.5)
        row((left, f"{seller}, {drawn.choice(STREETS)}", False))
        row((left, f"{number}   {date}", False), gap=2)
    row((left, "Bill to", False))
    row((left, drawn.choice(BUYERS), False), gap=2)
    middle = drawn.random() < 0.6  # columns of quantities and prices
    if middle:
        cells = [(left, "Item", False), (width // 2, "Qty", True), (int(width * 0.7), "Price", True)]
        row(*cells, (end, "Amount", True), gap=1.3)
        draw.line((left, y - step // 4, end, y - step // 4), fill=INK, width=max(1, size // 12))
    for good, count, price, amount in items:
        cells = [(width // 2, str(count), True), (int(width * 0.7), cents(price), True)] if middle else []
        row((left, good, False), *cells, (end, cents(amount), True))
    y += step // 2
    label = left if drawn.random() < 0.5 else width // 2
    if tax:
        row((label, "Subtotal", False), (end, money.format(cents(net)), True))
        row((label, drawn.choice(["Tax", "VAT"]), False), (end, money.format(cents(tax)), True))
    row((label, drawn.choice(TOTALS), False), (end, money.format(cents(net + tax)), True), gap=2.5)
    if drawn.random() < 0.5:
        row((left, drawn.choice(["Thank you for your order.", "Please pay within 14 days."]), False))
    return image, cents(net + tax)
