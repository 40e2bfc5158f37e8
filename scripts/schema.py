"""Take the legal keys of a recipe, their types and the built-in chat templates from the installed Axolotl: a JSON schema for `make lint` and for editors.

    python -m scripts.schema                 # → recipes/schema/axolotl.json

`axolotl config-schema` gives up on one torch type and prints a list without types, so this asks the same pydantic model itself. It adds the keys of
Axolotl's own plug-ins (`x-plugin`: whose), what was removed or will be (`x-removed`, `x-deprecated`), and the choices that the model takes for any text.
A first line `# yaml-language-server: $schema=schema/axolotl.json` completes keys in an editor.
"""

import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from importlib import metadata
from pathlib import Path
from unittest import mock

from scripts import files, process

TARGET = Path("recipes/schema/axolotl.json")
OURS = {
    "x_hardware": {
        "description": "The machine that the recipe was written for; its GPU is a key of recipes/facts/gpus.yml",
        "type": "object",
        "properties": {"gpu": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "count": {"type": "integer", "minimum": 1}},
    },
    "x_waive": {"description": "Findings of `make lint` that are meant: {rule: reason}", "type": "object", "additionalProperties": {}},
    "x_refused": {
        "description": "Findings that `make lint` must come to, of a recipe that shows a mistake: {rule: reason}",
        "type": "object",
        "additionalProperties": {},
    },
}
TOKEN = re.compile(r"<[|｜][^|｜<>]{1,40}[|｜]>|</?s>|<(?:start|end)_of_turn>|<turn\|>|\[/?INST\]|<end_of_utterance>")


def json_schema(model):
    """A pydantic model's JSON schema; what JSON cannot say (torch types, callables) is left open."""
    from pydantic.json_schema import GenerateJsonSchema
    from pydantic_core import PydanticSerializationError

    class Lenient(GenerateJsonSchema):
        def handle_invalid_for_json_schema(self, schema, error_info):
            return {}

        def enum_schema(self, schema):
            try:
                return super().enum_schema(schema)
            except PydanticSerializationError:
                return {"type": "string"}

    return model.model_json_schema(schema_generator=Lenient)


def plugins():
    """(plug-in's name in a recipe, the plug-in) for each of Axolotl's own integrations that can be imported here."""
    import axolotl.integrations as root
    from axolotl.integrations.base import BasePlugin

    for package in (m.name for m in pkgutil.iter_modules(root.__path__) if m.ispkg):
        for module in (f"{root.__name__}.{package}", f"{root.__name__}.{package}.plugin"):
            try:
                found = importlib.import_module(module)
            except ImportError:  # it has no such part, or needs a package that is not installed
                continue
            for name, cls in inspect.getmembers(found, inspect.isclass):
                if issubclass(cls, BasePlugin) and cls is not BasePlugin and cls.__module__ == module:
                    yield f"{root.__name__}.{package}.{name}", cls()


def add_plugins(schema):
    """Their keys, marked with the plug-in that a recipe must list for them, and the adapters they bring."""
    from axolotl.integrations.base import get_builtin_plugins

    schema["x-plugins"] = []
    adapters = {"lora", "qlora", "llama-adapter"}  # axolotl/utils/schemas/peft.py, validate_adapter
    for name, plugin in plugins():
        schema["x-plugins"].append(name)
        adapters |= {adapter.name for adapter in plugin.get_adapter_capabilities()}
        if not plugin.get_input_args():
            continue
        module, _, model = plugin.get_input_args().rpartition(".")
        theirs = json_schema(getattr(importlib.import_module(module), model))
        schema["$defs"] |= {k: v for k, v in theirs.get("$defs", {}).items() if k not in schema["$defs"]}
        listed = {} if name in get_builtin_plugins() else {"x-plugin": name}
        for key, value in theirs["properties"].items():
            schema["properties"].setdefault(key, value | listed)
    schema["properties"]["adapter"] |= {"anyOf": [{"enum": sorted(adapters)}, {"type": "null"}]}


def add_removed(properties):
    """What was removed (`x-removed`) and what will be (`x-deprecated`), each with Axolotl's own words: from its fields, and by asking its validators."""
    from axolotl.utils.schemas import deprecated
    from axolotl.utils.schemas.config import AxolotlInputConfig

    for key, field in AxolotlInputConfig.model_fields.items():
        said = field.deprecated or (properties[key].get("description") or "").partition("eprecated: ")[2]
        if isinstance(said, str) and said:
            properties[key] |= {"deprecated": True, "x-deprecated": said}
    for key, field in deprecated.DeprecatedParameters.model_fields.items():
        value = True if "bool" in str(field.annotation) else "no" if "str" in str(field.annotation) else 1
        with mock.patch.object(deprecated.LOG, "warning") as said:
            try:
                deprecated.DeprecatedParameters(**{key: value})
                properties[key] |= {"deprecated": True, "x-deprecated": said.call_args[0][0]}
            except DeprecationWarning as error:
                properties[key] |= {"deprecated": True, "x-removed": str(error)}


def add_choices(properties):
    """What Axolotl's model takes for any text or number, and what fails after the model is loaded: the choices themselves."""
    from axolotl.utils.schemas.enums import CANONICAL_ATTN_IMPLS, CustomSupportedOptimizers
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    optimizers = {o.value for o in (*OptimizerNames, *CustomSupportedOptimizers)}
    schedules = {s.value for s in SchedulerType} | {"one_cycle", "rex"}  # axolotl/core/builders/base.py, _configure_scheduler
    properties["optimizer"] = {"description": "The optimizer, of transformers or of Axolotl", "enum": [*sorted(optimizers), None]}
    properties["lr_scheduler"] |= {"anyOf": [{"enum": sorted(schedules)}, {"type": "null"}]}
    attention = [{"enum": sorted(CANONICAL_ATTN_IMPLS)}, {"type": "string", "pattern": "/"}, {"type": "null"}]
    properties["attn_implementation"] |= {"anyOf": attention}
    properties["learning_rate"] = {"type": "number"}
    properties["num_epochs"] |= {"exclusiveMinimum": 0}
    for key in ("micro_batch_size", "gradient_accumulation_steps", "lora_r"):
        properties[key] |= {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    properties["sequence_len"] |= {"minimum": 1}


def chat_templates():
    """{name: {"end": the token after a reply, "tokens": all special tokens it writes, "tools": whether it knows tools}}; eos_token: the tokenizer's own."""
    import axolotl.utils.chat_templates as package
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template as compiled

    found = {}
    for path in sorted(Path(package.__file__).parent.glob("templates/*.jinja")):
        text = path.read_text(encoding="utf-8")
        turns = [{"role": "user", "content": "THE_QUESTION"}, {"role": "assistant", "content": "THE_REPLY"}]
        try:
            shown = compiled(text).render(messages=turns, bos_token="<|bos_token|>", eos_token="<|eos_token|>", add_generation_prompt=False)
        except (TemplateError, TypeError, ValueError):
            shown = ""
        after = TOKEN.search(shown.partition("THE_REPLY")[2])
        found[path.stem] = {
            "end": {"<|eos_token|>": "eos_token"}.get(after[0], after[0]) if after else None,
            "tokens": sorted(set(TOKEN.findall(shown)) - {"<|bos_token|>", "<|eos_token|>"}),
            "tools": bool(re.search(r"\btools\b", text)),
        }
    return found


def build():
    from axolotl.utils.schemas.config import AxolotlInputConfig
    from axolotl.utils.schemas.enums import ATTN_IMPLS_SUPPORTING_PACKING, LEGACY_ATTN_FLAG_TO_IMPL

    schema = json_schema(AxolotlInputConfig)
    add_plugins(schema)
    for name, field in AxolotlInputConfig.model_fields.items():  # `populate_by_name`: a field with an alias answers to both
        schema["properties"].setdefault(name, schema["properties"].get(field.alias, {}))
    for name, value in list(schema["$defs"]["FSDPConfig"]["properties"].items()):  # Axolotl strips the prefix before it validates
        schema["$defs"]["FSDPConfig"]["properties"].setdefault(f"fsdp_{name}", value)
    add_removed(schema["properties"])
    add_choices(schema["properties"])
    schema["properties"] |= OURS
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"axolotl {metadata.version('axolotl')}; made by `make schema`",
        "type": "object",
        "properties": schema["properties"],
        "required": schema["required"],
        "patternProperties": {"^x_": {}},
        "additionalProperties": False,
        "$defs": schema["$defs"],
        "x-plugins": schema["x-plugins"],  # those that could be looked into
        "x-chat-templates": chat_templates(),
        "x-attention-flags": LEGACY_ATTN_FLAG_TO_IMPL,  # the first that is set wins
        "x-attention-that-packs": sorted(ATTN_IMPLS_SUPPORTING_PACKING),
    }


def main(argv):
    if argv:
        print("usage: python -m scripts.schema", file=sys.stderr)
        return 2
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    made = build()
    changed = files.write_if_changed(TARGET, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(f"schema      {TARGET}: {len(made['properties'])} keys of {made['$comment'].partition(';')[0]}{'' if changed else ', as before'}")
    return 0


if __name__ == "__main__":
    process.command(main)
