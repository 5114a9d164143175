def pytest_addoption(parser):
    parser.addoption("--backbones", metavar="FILE", help="write the table of backbone families into this file")
