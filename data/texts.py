"""Text that is not the task: what tokenizers are trained on and what gives a model its language; no tensors, no files.

Everything here is written for this repository or generated from it.
"""

from __future__ import annotations

from random import Random

from world import MODULUS, OPERANDS, Operation

MATHS = (
    "A number is even when it can be divided by two without a remainder.",
    "The sum of two odd numbers is always even, and the product of two odd numbers is odd.",
    "Let x be a real number such that x squared equals four; then x is two or minus two.",
    "We first simplify the expression, and then we solve the equation for the unknown.",
    "Therefore the answer is the smallest integer that satisfies both conditions.",
    "To find the area of the triangle, multiply the base by the height and divide by two.",
    "Suppose that n is a positive integer. We prove the statement by induction on n.",
    "The probability of at least one success is one minus the probability of none.",
    "Wait, I should check whether this value is really a solution of the original equation.",
    "The derivative of the function is zero at this point, so it may be a maximum.",
    "If the remainder is not zero, then the number cannot be divided by three.",
    "However, the second condition gives us a contradiction, because the left side is negative.",
    "In other words, the two lines meet at exactly one point of the plane.",
    "Since there are ten digits, each of them appears with the same frequency.",
    "Let me think about this again: we have to count the pairs, not the single elements.",
    "The sequence grows without bound, which means that it does not converge.",
    "By the distributive law, we can write the product as a sum of three terms.",
    "So the total distance is sixty kilometres, and the average speed is thirty.",
    "Alternatively, consider the problem from the other side and work backwards.",
    "This step follows from the definition, so there is nothing more to show here.",
    "First we add the digits. If the result has more than one digit, we add them again.",
    "The last digit of a power depends only on the last digit of its base.",
    "What is the largest number of points that can be placed inside the circle?",
    "Each student received the same number of apples, and five apples were left over.",
)

CODE = (
    "def add(left, right):\n    return left + right\n",
    "for index in range(10):\n    print(index, values[index])\n",
    'if result is None:\n    raise ValueError(f"no result for {name!r}")\n',
    'import json\n\nwith open(path, encoding="utf-8") as file:\n    data = json.load(file)\n',
    "class Counter:\n    def __init__(self, start=0):\n        self.value = start\n",
    'return [item.name for item in items if item.name != ""]\n',
    "while low < high:\n    middle = (low + high) // 2\n    if values[middle] < target:\n        low = middle + 1\n",
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}\n',
    '{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}\n',
    "result = sum(x * y for x, y in zip(first, second)) % 10\n",
    "const total = items.reduce((sum, item) => sum + item.price, 0);\n",
    "SELECT name, count(*) FROM users WHERE age >= 18 GROUP BY name;\n",
)

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("ball", "book", "cake", "kite", "lamp", "map", "stone", "letter")
PLACES = ("garden", "house", "school", "river", "forest", "market", "kitchen", "station")
ADJECTIVES = ("red", "small", "old", "new", "heavy", "green", "little", "bright")
STORY_FORMS = (
    "{name} has a {adjective} {thing}.",
    "{name} goes to the {place} with {other}.",
    "Then {name} gives the {thing} to {other}.",
    "There is a {adjective} {thing} in the {place}.",
    "After that {other} and {name} are happy.",
    '"Let me see the {thing}", says {other}.',
    "Now it is time to leave the {place}.",
    "So {other} takes the {thing} and starts to go.",
    "I think that this {thing} is the last one.",
    "{name} wants to be sure that nothing is wrong.",
)


def story(rng: Random) -> str:
    """Three to five sentences about the same two people, one thing and one place."""
    name, other = rng.sample(NAMES, 2)
    words = {"thing": rng.choice(THINGS), "place": rng.choice(PLACES), "adjective": rng.choice(ADJECTIVES)}
    forms = rng.sample(STORY_FORMS, rng.randint(3, 5))
    return " ".join(form.format(name=name, other=other, **words) for form in forms)


def facts(rng: Random) -> str:
    """Four to eight unconnected single steps, "3 - 4 = 9. 6 * 2 = 2.", each right modulo 10."""
    parts = []
    for _ in range(rng.randint(4, 8)):
        skill, before = rng.choice(("plus", "minus", "double")), rng.randrange(MODULUS)
        operation = Operation(skill, 2 if skill == "double" else rng.choice(OPERANDS))
        parts.append(f"{before} {operation.symbol} = {operation.apply(before)}.")
    return " ".join(parts)


def prose(rng: Random) -> str:
    """One to three of the sentences about mathematics."""
    return " ".join(rng.sample(MATHS, rng.randint(1, 3)))


def code(rng: Random) -> str:
    """One of the pieces of code."""
    return rng.choice(CODE)
