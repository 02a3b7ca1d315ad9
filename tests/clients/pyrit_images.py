"""Send a prompt to an images API with PyRIT's own client, and print what it made of the answer; runs in an environment with PyRIT.

python pyrit_images.py URL KEY MODEL PROMPT
"""

import asyncio
import json
import sys

from pyrit.models import Message, MessagePiece
from pyrit.prompt_target import OpenAIImageTarget
from pyrit.setup import IN_MEMORY, initialize_pyrit_async


async def main(url: str, key: str, model: str, prompt: str) -> None:
    await initialize_pyrit_async(memory_db_type=IN_MEMORY)
    target = OpenAIImageTarget(endpoint=url, api_key=key, model_name=model, image_size="auto", quality="low", output_format="png")
    message = Message(message_pieces=[MessagePiece(role="user", original_value=prompt)])
    (answer,) = await target.send_prompt_async(message=message)
    piece = answer.message_pieces[0]
    print(json.dumps({"error": piece.response_error, "type": piece.converted_value_data_type, "value": piece.converted_value}))


asyncio.run(main(*sys.argv[1:]))
